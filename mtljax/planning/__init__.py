"""What a program costs on machines that are not there: compilers run ahead of time and read.

`steps` holds `mtljax.plan`, engines side by side; `runs` the same of a config; `table` prints both. Below them:
`targets` (which machines), `compiler` (a program compiled for one: `lowering` here, `child` in a process of its own,
`results`) and `hlo` (what a compiled program says: `buffers`, `products`, read with `hlo_text`). Only `runs` imports
`training` and `ablation`; the others know of `gradients`, errors and the cache directory of `data`.
"""
