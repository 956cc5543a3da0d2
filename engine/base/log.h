/*
 * log.h - one JSON object per line on standard error.
 *
 * Why      Machines read logs; people grep them. Never prompts, training text or keys.
 * Memory   none
 * Threads  Any; a line is written with one write(2).
 * Errors   none
 * Limits   A line is cut at 4096 bytes.
 * Life     gd_log_init once in main (optional: level info without it).
 */
#ifndef GD_BASE_LOG_H
#define GD_BASE_LOG_H

enum gd_log_level { GD_LOG_ERROR, GD_LOG_WARN, GD_LOG_INFO, GD_LOG_DEBUG };

/* `level` unless the environment says another: GRAFTD_LOG=debug or "info,job:debug,http:warn". `process` ("server", "worker-0") is on every line. */
void gd_log_init(const char *process, enum gd_log_level level);
/* topic is a literal ("job"); the message is `key=value` pairs in the names of the code. */
void gd_log(enum gd_log_level level, const char *topic, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
#define gd_log_error(topic, ...) gd_log(GD_LOG_ERROR, topic, __VA_ARGS__)
#define gd_log_warn(topic, ...) gd_log(GD_LOG_WARN, topic, __VA_ARGS__)
#define gd_log_info(topic, ...) gd_log(GD_LOG_INFO, topic, __VA_ARGS__)
#define gd_log_debug(topic, ...) gd_log(GD_LOG_DEBUG, topic, __VA_ARGS__)

#endif
