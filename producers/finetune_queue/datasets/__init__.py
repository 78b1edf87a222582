"""Datasets: what is wrong with them, and how a folder becomes a ZIP.

`check.check_archive` judges a ZIP before anything is paid for, `pack.pack` makes one from a folder,
`render.render_report` shows a report in a terminal.
Nothing is imported here: Pillow and Rich load only with the module that needs them.
"""
