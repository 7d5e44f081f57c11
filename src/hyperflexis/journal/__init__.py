"""What a control plane was fed and what it decided, in files: written beside it, read long after it.

A journal is a folder of parts, a part a header and frames, a frame some entries. With the header a like control plane
can be made and fed again; the decisions are the same, because it depends on nothing else. Knows lengths and hashes of
blocks; prompts and answers never come here. Knows nothing of where policies come from, nor of what is done with what is
read.
"""
