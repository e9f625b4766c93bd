"""Cost models and pipeline schedules on paper: what a model is, costs and needs, without torch.

Reading order. A model: `parameters`, `flops`, `memory` (with `config` for formats and the run),
`describe` (what `fivefold plan RECIPE` prints; `shape`, `table` and `unit` serve it). A schedule:
`schedule` (tables and their validity), `simulate` (times, bubbles, memory), `one_f_one_b`,
`zero_bubble`, `list_schedule` with `automatic` and `v_shape` on top, `make_schedule` (by name),
`schedule_table`, `timeline` (SVG). A cluster: `hardware`, `layout`, `sharding`, `communication`,
`piece` and `chain` (the model cut into links with times), `stage_split`, `rank_load`, `evaluate`,
`search`, `layout_table`. Activations that leave the device: `block_order` (when copies go),
`activation_choice` (the knapsack), `rank_activations` (bytes of a layer on one rank),
`activation_order` (the knapsack over a rank's step), `mixed` (a layout whose ranks choose layer by
layer).
`published` holds the figures of others that all of it is checked against, `dense_gpt` the closed
forms behind some of them. May import `models.config`,
`models.preset` and the foundation; never torch.
"""
