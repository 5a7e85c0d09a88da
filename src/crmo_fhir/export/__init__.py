"""The export room: from result rows to results.csv, table1.csv, Measure, Library, MeasureReport and report.html.

Pure: rows and a `Study` in, text or a dict out. Only here are figures rounded (`table1.round_half_away`).
"""
