/*
 * chat.h - a conversation as token ids with the exact mask of what the assistant says.
 *
 * Why      Training and serving share one rendering; the loss sees assistant tokens and nothing else.
 * Memory   gd_chat owns the compiled template, borrows the tokenizer. Results are the caller's.
 * Threads  Read-only after creation: any thread.
 * Errors   GD_INVALID naming messages[i].field; GD_BAD_MODEL for a broken template.
 * Limits   GD_CHAT_MESSAGES_MAX messages.
 * Life     create -> encode ... -> destroy.
 */
#ifndef GD_TEXT_CHAT_H
#define GD_TEXT_CHAT_H

#include "engine/text/template.h"
#include "engine/text/tokenizer.h"

#define GD_CHAT_MESSAGES_MAX 4096

struct gd_chat;

/* template_source NULL: the model has no template; chat calls fail with the way out (use prompt/completion). */
GD_MUST_CHECK bool gd_chat_create(struct gd_chat **out, const struct gd_tokenizer *tokenizer,
                                  const char *template_source, struct gd_error *err);
/* The template that renders whatever comes with tools ("tool_use" of a model that has several). */
GD_MUST_CHECK bool gd_chat_add_tools_template(struct gd_chat *chat, const char *source, struct gd_error *err);
void gd_chat_destroy(struct gd_chat *chat);
bool gd_chat_has_template(const struct gd_chat *chat);
void gd_chat_template_digest(const struct gd_chat *chat, char out[65]); /* SHA-256 of the sources, "" when none */
/* The clock that templates see through strftime_now (0 = the real one). A job sets the time of its creation, so that a
 * resumed run trains on the same text. */
void gd_chat_set_now(struct gd_chat *chat, int64_t unix_seconds);

struct gd_chat_encoding {
    struct gd_tokens tokens;   /* with byte offsets into text */
    float *weights;            /* [tokens.count]: loss weight of each token as a target (0 = not trained) */
    struct gd_buf text;        /* the rendered text */
    int encoded;               /* of two texts apart: tokens of the first one, the encoder's; else 0 */
};
void gd_chat_encoding_release(struct gd_chat_encoding *encoding);

/* Checks shape and roles of an OpenAI message list (roles developer, system, user, assistant, tool, function; content
 * string, null with tool_calls, or text parts). `path` names it in errors ("messages"). for_training: the last message
 * must be from the assistant, some assistant message must have weight > 0, and an unknown field is an error. */
GD_MUST_CHECK bool gd_chat_check_messages(const cJSON *messages, const char *path, bool for_training,
                                          struct gd_error *err);

/* NULL and null mean no tools. */
GD_MUST_CHECK bool gd_chat_check_tools(const cJSON *tools, const char *path, struct gd_error *err);

/* Free variables for the template (chat_template_kwargs: enable_thinking, documents, ...): an object of at most GD_CHAT_KWARGS_MAX
 * members; NULL and null mean none. Whoever renders with them fails on one that the template does not read, and on a name that the
 * conversation itself fills. */
#define GD_CHAT_KWARGS_MAX 128
GD_MUST_CHECK bool gd_chat_check_kwargs(const cJSON *kwargs, const char *path, struct gd_error *err);

/* Messages reach the template as Hugging Face's conventions have them: text parts joined, `developer` as `system` unless
 * the template knows it, function_call as a tool call, role function as tool, tool call arguments as an object or as
 * text, whichever the template renders as JSON. Tools or tool calls that the template never reads are an error. The
 * template writes its own bos; none is added. */

/* The prompt of a completion: messages rendered with add_generation_prompt. tools may be NULL. */
GD_MUST_CHECK bool gd_chat_encode_prompt(const struct gd_chat *chat, const cJSON *messages, const cJSON *tools,
                                         struct gd_chat_encoding *out, struct gd_error *err);

/* The same with free variables for the template. */
GD_MUST_CHECK bool gd_chat_encode_prompt_with(const struct gd_chat *chat, const cJSON *messages, const cJSON *tools,
                                              const cJSON *kwargs, struct gd_chat_encoding *out, struct gd_error *err);

/* A training row: the whole conversation, weights[] = the message's `weight` (default 1) on the assistant's own
 * characters and its end-of-turn token, 0 elsewhere. Spans come from {% generation %} blocks when the template has
 * them, else from rendering each prefix of the conversation twice (with and without the assistant's turn); the turn
 * then ends after its last special token when only white space follows it, else where the text of the prefix ends. A
 * token is trained when all of its bytes lie inside the turn. */
GD_MUST_CHECK bool gd_chat_encode_training(const struct gd_chat *chat, const cJSON *messages, const cJSON *tools, const cJSON *kwargs,
                                           struct gd_chat_encoding *out, struct gd_error *err);

/* prompt + completion text, tokenised as one: bos as the tokenizer adds it. Raw text is raw, as in /v1/completions: special
 * tokens written in it count (rows rendered by hand); an eos that ends the completion is not doubled. Weights 1 on the tokens that lie wholly in the completion and on eos after it. */
GD_MUST_CHECK bool gd_chat_encode_pair(const struct gd_chat *chat, const char *prompt, const char *completion,
                                       struct gd_chat_encoding *out, struct gd_error *err);

/* What an encoder reads ends with eos: appends it unless it is there. */
void gd_chat_end_text(const struct gd_chat *chat, struct gd_tokens *tokens);

/* For models with an encoder, two texts apart: the prompt, then the completion, whose tokens have weight 1. Each ends as the
 * tokenizer ends a text, and with eos, which is not doubled. */
GD_MUST_CHECK bool gd_chat_encode_pair_apart(const struct gd_chat *chat, const char *prompt, const char *completion,
                                             struct gd_chat_encoding *out, struct gd_error *err);

/* The same of a conversation: all messages but the last one as a prompt, and the last one's words, which the assistant says.
 * Without a template one question and its answer are the two texts. */
GD_MUST_CHECK bool gd_chat_encode_training_apart(const struct gd_chat *chat, const cJSON *messages, const cJSON *tools,
                                                 const cJSON *kwargs, struct gd_chat_encoding *out, struct gd_error *err);

#endif
