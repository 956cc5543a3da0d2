/* xlm_roberta.c - XLM-R (Conneau et al. 2020): RoBERTa on another vocabulary; the multilingual E5 and BGE-M3 go by this name. */
#include "engine/model/config_read.h"
#include "engine/model/encoder.h"

const struct gd_family gd_family_xlm_roberta = GD_ROBERTA("xlm-roberta", "XLMRobertaForMaskedLM", 30522);
