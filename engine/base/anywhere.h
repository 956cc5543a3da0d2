/*
 * anywhere.h - marks a function that kernels of a card share with the host.
 *
 * Why      The same numbers, and the same search, on both sides: static GD_ANYWHERE inline ...
 * Memory   none
 * Threads  Any.
 * Errors   none
 * Limits   Plain C that is C++ as well; no calls but of functions marked so, and of those that CUDA has.
 * Life     none
 */
#ifndef GD_BASE_ANYWHERE_H
#define GD_BASE_ANYWHERE_H

#ifdef __CUDACC__
#define GD_ANYWHERE __host__ __device__
#else
#define GD_ANYWHERE
#endif

#endif
