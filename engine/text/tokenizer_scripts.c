/*
 * The UnicodeScripts pre-tokenizer: runs of one script, by the reference's table (Unicode 9). A space and what had no script
 * then belong to any run but begin none; kana and U+30FC count as Han.
 */
#include "engine/base/buf.h"
#include "engine/text/tokenizer_parts.h"

static const char *const scripts[] = {
    "Adlam", "Ahom", "Anatolian_Hieroglyphs", "Arabic", "Armenian", "Avestan", "Balinese", "Bamum", "Bassa_Vah", "Batak",
    "Bengali", "Bhaiksuki", "Bopomofo", "Brahmi", "Braille", "Buginese", "Buhid", "Canadian_Aboriginal", "Carian",
    "Caucasian_Albanian", "Chakma", "Cham", "Cherokee", "Coptic", "Cuneiform", "Cypriot", "Cyrillic", "Deseret",
    "Devanagari", "Duployan", "Egyptian_Hieroglyphs", "Elbasan", "Ethiopic", "Georgian", "Glagolitic", "Gothic", "Grantha",
    "Greek", "Gujarati", "Gurmukhi", "Hangul", "Hanunoo", "Hatran", "Hebrew", "Imperial_Aramaic", "Inherited",
    "Inscriptional_Pahlavi", "Inscriptional_Parthian", "Javanese", "Kaithi", "Kannada", "Kayah_Li", "Kharoshthi", "Khmer",
    "Khojki", "Khudawadi", "Lao", "Latin", "Lepcha", "Limbu", "Linear_A", "Linear_B", "Lisu", "Lycian", "Lydian",
    "Mahajani", "Malayalam", "Mandaic", "Manichaean", "Marchen", "Meetei_Mayek", "Mende_Kikakui", "Meroitic_Cursive",
    "Meroitic_Hieroglyphs", "Miao", "Modi", "Mongolian", "Mro", "Multani", "Myanmar", "Nabataean", "New_Tai_Lue", "Newa",
    "Nko", "Ogham", "Ol_Chiki", "Old_Hungarian", "Old_Italic", "Old_North_Arabian", "Old_Permic", "Old_Persian",
    "Old_South_Arabian", "Old_Turkic", "Oriya", "Osage", "Osmanya", "Pahawh_Hmong", "Palmyrene", "Pau_Cin_Hau", "Phags_Pa",
    "Phoenician", "Psalter_Pahlavi", "Rejang", "Runic", "Samaritan", "Saurashtra", "Sharada", "Shavian", "Siddham",
    "SignWriting", "Sinhala", "Sora_Sompeng", "Sundanese", "Syloti_Nagri", "Syriac", "Tagalog", "Tagbanwa", "Tai_Le",
    "Tai_Tham", "Tai_Viet", "Takri", "Tamil", "Tangut", "Telugu", "Thaana", "Thai", "Tibetan", "Tifinagh", "Tirhuta",
    "Ugaritic", "Vai", "Warang_Citi", "Yi",
};

#define HAN "[\\p{sc:Han}\\p{sc:Hiragana}\\p{sc:Katakana}\\x{30FC}]"
#define COMMON "(?![ \\x{30FC}])\\p{sc:Common}"

/* ANY is a subroutine: a space, or a character of none of the scripts. A run: one character of a script, then that script
 * or ANY. */
bool gd_scripts_pattern(struct gd_regex **out, const char *path, struct gd_error *err)
{
    struct gd_buf pattern;
    gd_buf_init(&pattern, 0);
    gd_buf_append_text(&pattern, "(?(DEFINE)(?<any> |[^\\p{sc:Common}\\p{sc:Han}\\p{sc:Hiragana}\\p{sc:Katakana}");
    for (size_t i = 0; i < GD_COUNT(scripts); i++)
        gd_buf_printf(&pattern, "\\p{sc:%s}", scripts[i]);
    gd_buf_append_text(&pattern, "]))(?:" HAN "(?:" HAN "|(?&any))*+|" COMMON "(?:" COMMON "|(?&any))*+");
    for (size_t i = 0; i < GD_COUNT(scripts); i++)
        gd_buf_printf(&pattern, "|\\p{sc:%s}(?:\\p{sc:%s}|(?&any))*+", scripts[i], scripts[i]);
    gd_buf_append_char(&pattern, ')');
    bool ok = gd_regex_compile(out, pattern.data, pattern.length, GD_REGEX_PCRE, path, err);
    gd_buf_release(&pattern);
    return ok;
}
