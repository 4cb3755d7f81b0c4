"""LoopMoE as Megatron-style modules: visit layers, IterAdaLN, sandwich norm, attention."""
