"""One package or file per kind of engine, all behind the contract of `contract`."""
