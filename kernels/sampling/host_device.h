// Marks a function that runs on the host and, under nvcc, on the device too.
#ifndef SANTA_KERNELS_SAMPLING_HOST_DEVICE_H_
#define SANTA_KERNELS_SAMPLING_HOST_DEVICE_H_

#ifdef __CUDACC__
#define SANTA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SANTA_HOST_DEVICE inline
#endif

#endif  // SANTA_KERNELS_SAMPLING_HOST_DEVICE_H_
