"""The engine of this project as processes: a zygote that is ready to fork, the instances it forks, and their handles.

`host` is the side of the gateway's process and imports no torch; `zygote`, `loading`, `instance` and `calibration` run
in the other processes. `profiling` runs a model in the process that asks for it, to measure it.
"""
