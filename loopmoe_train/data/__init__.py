"""Text to training batches: corpus -> tokenizer -> .bin/.idx -> sample order -> tensors.

Only :mod:`loopmoe_train.data.batches` imports torch.
"""
