/*
 * command.h - what the command line does without a server.
 *
 * Why      `graftd run`, `inspect`, `generate`, `export` and the worker process are the engine; main.c only tells them apart.
 * Memory   none
 * Threads  main thread
 * Errors   One line on standard error; the return value is the exit code: 0, 1 (it failed), 2 (wrong usage).
 * Limits   none
 * Life     called once from main
 */
#ifndef GD_WORKER_COMMAND_H
#define GD_WORKER_COMMAND_H

int gd_command_run(int argc, char **argv);       /* one job in the foreground */
int gd_command_inspect(int argc, char **argv);
int gd_command_generate(int argc, char **argv);
int gd_command_export(int argc, char **argv);
int gd_command_worker(int argc, char **argv);    /* spawned by the server */

#endif
