"""The controlled study: arms x seeds on the same documents in the same order.

- `plan`: the runs of a study, checked before any of them is started; what is done, what is left.
- `results`: what the finished runs found: intervals, paired tests.
- `statistics`: the arithmetic of those.
- `table`, `pictures`: the results as text, and as study.png and loop.png.
"""
