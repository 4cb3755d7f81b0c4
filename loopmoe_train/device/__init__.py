"""Everything that knows which accelerator this is; no other package names one.

- `accelerator`: `accel`, the one facade for npu, cuda and cpu, and `select(device)`.
- `backends`: what each device answers. `npu` is the only importer of torch_npu.
- `port`, `rewrite`: megatron.core is made device-neutral while it is imported.
- `fixes`: defects of megatron.core off its main path, each with the fix and its reason.
- `quiet`: silences exactly the warnings that say nothing here.

This package imports no torch by itself; import the submodule you need.
"""
