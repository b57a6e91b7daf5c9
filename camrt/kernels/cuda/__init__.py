"""Every kernel on an NVIDIA GPU.

``src/*.cu`` (CuPy) holds weights, weighted sums, resampling and fusion; ``numba_*.py`` holds what metrics need.
Nothing else in camrt imports cupy or numba, and nothing here does before a backend is asked for.
"""
