// What marks the functions that the C++ extension and the CUDA kernels share. They have internal linkage: the hot loops
// are compiled for several instruction sets, and a function of one build must never replace that of another.
#pragma once

#ifdef __CUDACC__
#define CAMRT_HOST_DEVICE static __host__ __device__ __forceinline__
#else
#define CAMRT_HOST_DEVICE static inline
#endif
