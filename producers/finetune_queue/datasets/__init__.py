"""Datasets: where they come from, what is wrong with them, and how a folder becomes a ZIP.

`check.check_archive` judges a ZIP before anything is paid, `pack.pack` makes one from a folder,
`sources.resolve_dataset` finds what a request's `dataset` names, `render.render_report` shows a report in a terminal.
Nothing is imported here: Pillow, fsspec and requests load only with the module that needs them.
"""
