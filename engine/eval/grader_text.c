#include "engine/eval/grader_text.h"

#include "engine/base/alloc.h"

#include <string.h>

#define STEPS_MAX 32
#define INDEX_MAX 1000000000

struct step {
    const char *name; /* NULL: an index */
    size_t index;
};

/* Literal text, or a reference. */
struct gd_grader_piece {
    const char *text; /* the literal, or the reference as written, without braces and blanks */
    size_t length;
    struct step *steps; /* NULL for a literal */
    int step_count;
    bool of_sample;
};

static const char *const sample_names[] = {"output_json", "output_text", "output_tools"};

/* Where the parser is, and what it says when it stops. */
struct cursor {
    const char *start, *at, *end; /* of the whole text; the end of the reference */
    const char *param;
    struct gd_error *err;
};

static bool fail_at(const struct cursor *cursor, const char *at, const char *what)
{
    size_t position = 1;
    for (const char *p = cursor->start; p < at; p++)
        position += ((unsigned char)*p & 0xC0u) != 0x80u;
    return gd_fail_param(cursor->err, GD_INVALID, cursor->param, "%s: at character %zu: %s", cursor->param, position,
                         what);
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool read_bracket(struct cursor *cursor, struct gd_arena *arena, struct step *step)
{
    const char *open = cursor->at++;
    if (cursor->at < cursor->end && (*cursor->at == '"' || *cursor->at == '\'')) {
        const char quote = *cursor->at++, *name = cursor->at;
        while (cursor->at < cursor->end && *cursor->at != quote)
            cursor->at++;
        step->name = gd_arena_strndup(arena, name, (size_t)(cursor->at - name));
        if (cursor->at == cursor->end || ++cursor->at == cursor->end || *cursor->at != ']')
            return fail_at(cursor, open, "[\"name\"] is not closed");
        cursor->at++;
        return true;
    }
    const char *digits = cursor->at;
    while (cursor->at < cursor->end && *cursor->at >= '0' && *cursor->at <= '9' && step->index <= INDEX_MAX / 10)
        step->index = step->index * 10 + (size_t)(*cursor->at++ - '0');
    if (cursor->at == digits || cursor->at == cursor->end || *cursor->at != ']')
        return fail_at(cursor, open, "brackets hold a number from 0 or a quoted name");
    cursor->at++;
    return true;
}

static bool read_name(struct cursor *cursor, struct gd_arena *arena, struct step *step)
{
    const char *name = ++cursor->at;
    while (cursor->at < cursor->end && strchr(".[]{}\"' \t\n\r", *cursor->at) == NULL)
        cursor->at++;
    if (cursor->at == name)
        return fail_at(cursor, name, "a name must follow the dot");
    step->name = gd_arena_strndup(arena, name, (size_t)(cursor->at - name));
    return true;
}

static bool check_sample_name(const struct cursor *cursor, const char *at, const struct step *step)
{
    for (size_t i = 0; step->name != NULL && i < GD_COUNT(sample_names); i++)
        if (strcmp(step->name, sample_names[i]) == 0)
            return true;
    return fail_at(cursor, at, "sample has output_text, output_json and output_tools");
}

/* cursor->at .. cursor->end is what stands between the braces. */
static bool read_reference(struct cursor *cursor, struct gd_arena *arena, struct gd_grader_piece *piece)
{
    while (cursor->at < cursor->end && is_blank(*cursor->at))
        cursor->at++;
    while (cursor->end > cursor->at && is_blank(cursor->end[-1]))
        cursor->end--;
    const char *begin = cursor->at;
    struct step steps[STEPS_MAX] = {{0}};
    while (cursor->at < cursor->end && strchr(".[", *cursor->at) == NULL)
        cursor->at++;
    size_t length = (size_t)(cursor->at - begin);
    piece->of_sample = length == 6 && memcmp(begin, "sample", 6) == 0;
    if (!piece->of_sample && !(length == 4 && memcmp(begin, "item", 4) == 0))
        return fail_at(cursor, begin, "a reference starts with 'item.' or 'sample.'");
    while (cursor->at < cursor->end) {
        if (piece->step_count == STEPS_MAX)
            return fail_at(cursor, cursor->at, "a reference has at most 32 steps");
        const char *at = cursor->at;
        struct step *step = &steps[piece->step_count++];
        if (*cursor->at == '['   ? !read_bracket(cursor, arena, step)
            : *cursor->at == '.' ? !read_name(cursor, arena, step)
                                 : !fail_at(cursor, at, "'.' or '[' must follow"))
            return false;
        if (cursor->err->code != GD_OK)
            return false;
        if (piece->of_sample && piece->step_count == 1 && !check_sample_name(cursor, at, step))
            return false;
    }
    if (piece->step_count == 0)
        return fail_at(cursor, begin, "a reference names a field: {{item.field}} or {{sample.output_text}}");
    piece->text = gd_arena_strndup(arena, begin, (size_t)(cursor->end - begin));
    piece->steps = gd_arena_alloc_array(arena, (size_t)piece->step_count, sizeof *steps);
    memcpy(piece->steps, steps, (size_t)piece->step_count * sizeof *steps);
    return true;
}

static size_t count_of(const char *text, const char *what)
{
    size_t count = 0;
    for (const char *p = strstr(text, what); p != NULL; p = strstr(p + strlen(what), what))
        count++;
    return count;
}

static bool parse_pieces(struct gd_grader_text *text, const char *source, struct cursor *cursor)
{
    text->pieces = gd_arena_alloc_array(&text->arena, 2 * count_of(source, "{{") + 1, sizeof *text->pieces);
    for (const char *p = source; *p != '\0';) {
        const char *open = strstr(p, "{{");
        size_t length = open != NULL ? (size_t)(open - p) : strlen(p);
        if (length > 0)
            text->pieces[text->piece_count++] =
                (struct gd_grader_piece){.text = gd_arena_strndup(&text->arena, p, length), .length = length};
        if (open == NULL)
            return true;
        cursor->at = open + 2;
        cursor->end = strstr(open + 2, "}}");
        if (cursor->end == NULL)
            return fail_at(cursor, open, "'{{' is not closed by '}}'");
        p = cursor->end + 2;
        if (!read_reference(cursor, &text->arena, &text->pieces[text->piece_count]))
            return false;
        text->piece_count++;
    }
    return true;
}

bool gd_grader_text_parse(struct gd_grader_text *text, const cJSON *json, const char *path, const char *key,
                          struct gd_error *err)
{
    const char *source = NULL;
    if (!gd_json_get_string(json, path, key, true, 0, GD_GRADER_TEXT_BYTES_MAX, &source, err))
        return false;
    char *param = gd_format("%s.%s", path, key);
    bool ok = gd_grader_text_parse_string(text, source, param, err);
    gd_free(param);
    return ok;
}

bool gd_grader_text_parse_string(struct gd_grader_text *text, const char *source, const char *param, struct gd_error *err)
{
    struct cursor cursor = {.start = source, .param = param, .err = err};
    return strlen(source) <= GD_GRADER_TEXT_BYTES_MAX
               ? parse_pieces(text, source, &cursor)
               : gd_fail_param(err, GD_INVALID, param, "%s has more than %u bytes", param, GD_GRADER_TEXT_BYTES_MAX);
}

/* ---- rendering ---- */

static const char *nearest_member(const cJSON *object, const char *name)
{
    const char *names[256];
    size_t count = 0;
    const cJSON *member;
    cJSON_ArrayForEach(member, object) if (count < GD_COUNT(names)) names[count++] = member->string;
    return gd_nearest_name(name, names, count);
}

static bool fail_missing(const struct gd_grader_piece *piece, const struct step *step, const cJSON *parent,
                         struct gd_grade *grade)
{
    if (step->name == NULL)
        return cJSON_IsArray(parent)
                   ? gd_grade_fail(grade, GD_GRADE_INVALID_VARIABLE, "{{%.200s}}: no element %zu, the list has %d",
                                   piece->text, step->index, cJSON_GetArraySize(parent))
                   : gd_grade_fail(grade, GD_GRADE_INVALID_VARIABLE,
                                   "{{%.200s}}: element %zu is asked of what is not a list", piece->text, step->index);
    if (!cJSON_IsObject(parent))
        return gd_grade_fail(grade, GD_GRADE_INVALID_VARIABLE, "{{%.200s}}: '%s' is asked of what is not an object",
                             piece->text, step->name);
    const char *near = nearest_member(parent, step->name);
    return gd_grade_fail(grade, GD_GRADE_INVALID_VARIABLE, "{{%.200s}}: the %s has no '%s'%s%s%s", piece->text,
                         step != piece->steps ? "object"
                         : piece->of_sample   ? "sample"
                                              : "item",
                         step->name, near != NULL ? "; did you mean '" : "", near != NULL ? near : "",
                         near != NULL ? "'?" : "");
}

static const cJSON *resolve(const struct gd_grader_piece *piece, const cJSON *item, const cJSON *sample,
                            struct gd_grade *grade)
{
    const cJSON *value = piece->of_sample ? sample : item;
    if (value == NULL) {
        gd_grade_fail(grade, GD_GRADE_INVALID_VARIABLE, "{{%.200s}}: there is no item", piece->text);
        return NULL;
    }
    for (int i = 0; i < piece->step_count; i++) {
        const struct step *step = &piece->steps[i];
        const cJSON *next = step->name != NULL     ? gd_json_find(value, step->name)
                            : cJSON_IsArray(value) ? cJSON_GetArrayItem(value, (int)step->index)
                                                   : NULL;
        if (next == NULL && i == 0 && piece->of_sample && strcmp(step->name, "output_json") == 0) {
            gd_grade_fail(grade, GD_GRADE_SAMPLE_PARSE, "{{%.200s}}: the sample is not JSON", piece->text);
            return NULL;
        }
        if (next == NULL) {
            fail_missing(piece, step, value, grade);
            return NULL;
        }
        value = next;
    }
    return value;
}

bool gd_grader_text_render(const struct gd_grader_text *text, const cJSON *item, const cJSON *sample,
                           struct gd_buf *out, struct gd_grade *grade)
{
    for (size_t i = 0; i < text->piece_count; i++) {
        const struct gd_grader_piece *piece = &text->pieces[i];
        const cJSON *value = piece->steps != NULL ? resolve(piece, item, sample, grade) : NULL;
        if (piece->steps == NULL) {
            gd_buf_append(out, piece->text, piece->length);
        } else if (value == NULL) {
            return false;
        } else if (cJSON_IsString(value)) {
            gd_buf_append_text(out, value->valuestring);
        } else {
            char *json = gd_json_print(value);
            gd_buf_append_text(out, json);
            gd_free(json);
        }
        if (out->overflow)
            return gd_grade_fail(grade, GD_GRADE_OTHER, "the text grows beyond %u bytes with {{%.200s}}",
                                 GD_GRADER_RENDER_BYTES_MAX, piece->text);
    }
    return true;
}

bool gd_grader_text_references(const struct gd_grader_text *text, const char *path, const char *key,
                               gd_reference_seen seen, void *context, struct gd_error *err)
{
    char *param = *path != '\0' ? gd_format("%s.%s", path, key) : gd_strdup(key);
    bool ok = true;
    for (size_t i = 0; ok && i < text->piece_count; i++) {
        const struct gd_grader_piece *piece = &text->pieces[i];
        const char *names[STEPS_MAX];
        for (int s = 0; s < piece->step_count; s++)
            names[s] = piece->steps[s].name;
        struct gd_grader_reference reference = {piece->text, piece->of_sample, names, piece->step_count};
        ok = piece->steps == NULL || seen(context, &reference, param, err);
    }
    gd_free(param);
    return ok;
}

void gd_grader_text_release(struct gd_grader_text *text)
{
    gd_arena_release(&text->arena);
}

/* ---- input and reference ---- */

bool gd_grader_pair_parse(struct gd_grader_pair *pair, const cJSON *json, const char *path, struct gd_error *err)
{
    return gd_grader_text_parse(&pair->input, json, path, "input", err) &&
           gd_grader_text_parse(&pair->reference, json, path, "reference", err);
}

bool gd_grader_pair_grade(const struct gd_grader *grader, const struct gd_grade_input *from, gd_grader_compare compare,
                          struct gd_grade *grade)
{
    const struct gd_grader_pair *pair = grader->state;
    struct gd_buf input, reference;
    gd_buf_init(&input, GD_GRADER_RENDER_BYTES_MAX);
    gd_buf_init(&reference, GD_GRADER_RENDER_BYTES_MAX);
    bool ok = gd_grader_text_render(&pair->input, from->item, from->sample, &input, grade) &&
              gd_grader_text_render(&pair->reference, from->item, from->sample, &reference, grade) &&
              compare(grader->state, input.data != NULL ? input.data : "", reference.data != NULL ? reference.data : "", grade);
    gd_buf_release(&input);
    gd_buf_release(&reference);
    return ok;
}

bool gd_grader_pair_references(const struct gd_grader *grader, const char *path, gd_reference_seen seen, void *context,
                               struct gd_error *err)
{
    const struct gd_grader_pair *pair = grader->state;
    return gd_grader_text_references(&pair->input, path, "input", seen, context, err) &&
           gd_grader_text_references(&pair->reference, path, "reference", seen, context, err);
}

void gd_grader_pair_release(struct gd_grader *grader)
{
    struct gd_grader_pair *pair = grader->state;
    gd_grader_text_release(&pair->input);
    gd_grader_text_release(&pair->reference);
    gd_free(pair);
}
