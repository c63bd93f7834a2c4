/* A config.json; what is accepted must survive being written and read again. */
#include "checkpoint/config.h"
#include "checkpoint/inventory.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct qep_model_config config, again;
    struct qep_inventory inventory;
    cJSON *tree = NULL;
    if (qep_config_parse((const char *)data, size, "fuzz", &config) != QEP_OK)
        return 0;
    if (qep_config_to_json(&config, &tree) != QEP_OK ||
        qep_config_from_json(tree, "again", &again) != QEP_OK ||
        memcmp(&config, &again, sizeof config) != 0)
        __builtin_trap();
    cJSON_Delete(tree);
    if ((int64_t)config.num_experts * config.num_hidden_layers > 10000)
        return 0; /* allowed, but slow to list */
    if (qep_inventory_create(&config, &inventory) != QEP_OK)
        __builtin_trap();
    qep_inventory_free(&inventory);
    return 0;
}
