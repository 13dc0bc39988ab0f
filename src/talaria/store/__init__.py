"""Everything that outlives the process: the spool's files and the ledger's rows."""
