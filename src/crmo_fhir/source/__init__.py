"""Getting records: from a server by search (`crawl`, planned by `plan`), or from a folder or file.

Of a folder, `pieces` says what its files are and takes them apart; `files` selects a study's records, `whole` all of a type.
"""
