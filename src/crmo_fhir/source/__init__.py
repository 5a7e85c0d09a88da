"""Getting records: from a folder or file (`files`), or from a server by search (`crawl`, planned by `plan`)."""
