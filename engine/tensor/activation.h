/*
 * activation.h - the closed list of element functions that a graft may put between two maps.
 *
 * Why      Training graphs, the serving kernel and requests name the same functions; names are those of transformers.
 * Memory   none
 * Threads  Any
 * Errors   none
 * Limits   none
 * Life     none (constants)
 */
#ifndef GD_TENSOR_ACTIVATION_H
#define GD_TENSOR_ACTIVATION_H

/*    id        name */
#define GD_ACTIVATION_LIST(X)                                                      \
    X(LINEAR,   "linear")   /* x */                                                \
    X(RELU,     "relu")     /* max(x, 0) */                                        \
    X(GELU,     "gelu")     /* x (1 + erf(x / sqrt 2)) / 2 */                      \
    X(GELU_NEW, "gelu_new") /* x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 */  \
    X(SILU,     "silu")     /* x / (1 + e^-x) */                                   \
    X(TANH,     "tanh")                                                            \
    X(SIGMOID,  "sigmoid")  /* 1 / (1 + e^-x) */

#define GD_ACTIVATION_ENUM(id, name) GD_ACTIVATION_##id,
enum gd_activation { GD_ACTIVATION_LIST(GD_ACTIVATION_ENUM) GD_ACTIVATION_COUNT };
#undef GD_ACTIVATION_ENUM

#endif
