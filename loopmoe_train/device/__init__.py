"""Everything that knows which accelerator this is; no other package names one.

- `accelerator`: `accel`, the one facade for npu, cuda and cpu, and `select(device)`.
- `backends`, `cpu`, `npu`: what each device answers; `kinds`: types of what they hand out. `npu` is
  the only importer of torch_npu.
- `environment`: the variables that decide how devices and their libraries work. No torch.
- `port`, `rewrite`: megatron.core is made device-neutral while it is imported.
- `fixes`: defects of megatron.core off its main path, each with the fix and its reason.
- `quiet`: silences exactly the warnings that say nothing here.

This package imports no torch by itself; import the submodule you need.
"""
