"""Checkpoints: megatron-core describes the state, this package stores and verifies it.

``state.py`` what is kept, as core's sharded tensors . ``tensors.py`` one rank's file .
``manifest.py`` what makes a folder a checkpoint . ``save.py`` ``load.py`` the two ways.

Not stored in core's own ``torch_dist`` format: that reads its metadata with ``pickle.load``, so a
crafted checkpoint runs code, and no part of it notices a flipped bit in tensor data.
Here tensors are safetensors files and the index is JSON.
"""
