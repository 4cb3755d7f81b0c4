"""Launch scripts of Megatron-LM and MindSpeed-LLM, read without running them."""
