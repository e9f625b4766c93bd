"""The report: a run directory becomes one self-contained HTML page.

Reading order: `page` (the whole page), `story` (verdict, key figures, timeline), `curve` (which
metrics share a chart), `skill` (pass rates over all stages), `block` (what stages draw beside their
curves), `next_step` (commands to go on with), `chart` (lines as SVG), `heatmap`, `histogram`,
`rollout` (tokens by their advantage), `scale` (axes and numbers), `record` (reading the run),
`markup` (escaped HTML). `style.css` and `hover.js` are written into the page. May import the
foundation only; no torch.
"""
