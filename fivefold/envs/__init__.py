"""Tasks: what an agent is asked, how it is judged, and in which order.

Reading order: `task` (a problem and the protocol), `config`, `skill` (what a generator is),
`letter_skill` and `number_skill` (eight generators that a tiny model can learn), `curriculum`
(levels in a growing mix), `procedural` (a generator as a task), `row` (a problem from a JSON
object), `file_task` (JSONL, GSM8K), `function_task` (a Python function of one's own), `gym`
(reasoning-gym by name), `open_task` (any of these by its config), `solved` (problems with their
solutions as conversations), `stages` (the stage that writes them). May import data,
verify, text and the foundation; no torch.
"""
