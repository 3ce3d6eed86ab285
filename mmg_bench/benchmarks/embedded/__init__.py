"""The embedded benchmark: procedurally generated videos with closed questions, without any download.

`world` draws what happens in a video, `render` turns that into pixels and H.264 files, `questions` asks about
it, and `dataset` writes a split to disk as an lmms-eval task.
"""
