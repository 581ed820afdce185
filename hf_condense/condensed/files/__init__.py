"""How a set lies on disk: the names and the content of its files, and the safe readers of them.

`names.py` has the names of sets, files and splits; `facts.py` says what is in `condense_config.json`; `packing.py`
turns a set into files and back; `untrusted.py`, `parquet.py` and `thrift.py` check files of strangers; `writable.py`
and `sizes.py` say what can be saved and what it takes. Folders and repositories of sets, and their cards and pages, are
above this room.
"""
