/*
 * chat_view.h - OpenAI messages as templates expect them.
 *
 * Why      Templates were written for Hugging Face's conventions: arguments as objects, content as one string, no
 *          `developer`, no `function_call`. What differs between templates is found out once, by trying.
 * Memory   A view is a new tree, the caller's to cJSON_Delete.
 * Threads  Any.
 * Errors   none: messages have passed gd_chat_check_messages.
 * Limits   none
 * Life     none
 */
#ifndef GD_TEXT_CHAT_VIEW_H
#define GD_TEXT_CHAT_VIEW_H

#include "engine/base/json.h"

struct gd_chat_habits {
    bool keeps_developer;     /* the template knows the role */
    bool arguments_as_text;   /* tool call arguments stay a JSON string */
    bool empty_for_null;      /* content null is given as "" */
    bool has_tools, has_tool_calls; /* the template reads them */
};

cJSON *gd_chat_view(const cJSON *messages, const struct gd_chat_habits *habits);

#endif
