/* A stand-in for NVIDIA's management library, libnvidia-ml.so.1, with the calls that node/donor/gpus.py makes.

   The file that FAKE_NVML names says what it tells; it is read anew at each call, so a test changes it while things
   run. Lines are `key value`; keys begin with the number of a card:

     count 2                   0.name NVIDIA A100-SXM4-80GB      0.uuid GPU-0     0.minor 0
     0.memory BYTES            0.used BYTES                      0.utilisation PERCENT
     0.energy MILLIJOULES              0.temperature CELSIUS
     0.uncorrected N           0.corrected N                     0.remapped N     0.pending 1     0.failed 1
     0.throttle BITS           0.pids 12,13                      0.mig 1          0.xid N
     fail.CALL CODE            0.fail.CALL CODE                  the call gives this error, on all cards or one

   Without a file there is no driver. What a card has no line for, it does not support. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUCCESS 0
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define INSUFFICIENT_SIZE 7
#define DRIVER_NOT_LOADED 9
#define TIMEOUT 10
#define CARDS_MAX 16

typedef struct { int index; } Card;
static Card cards[CARDS_MAX];
static char reported[CARDS_MAX][64];

static int read_text(const char *key, char *value, size_t size) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    size_t length = strlen(key);
    int found = 0;
    if (!file) return 0;
    while (!found && fgets(line, sizeof line, file))
        if (!strncmp(line, key, length) && line[length] == ' ') {
            line[strcspn(line, "\n")] = 0;
            snprintf(value, size, "%s", line + length + 1);
            found = 1;
        }
    fclose(file);
    return found;
}

static int read_card_text(Card *card, const char *name, char *value, size_t size) {
    char key[128];
    snprintf(key, sizeof key, "%d.%s", card->index, name);
    return read_text(key, value, size);
}

static int fails(Card *card, const char *call) {
    char key[128], value[64];
    snprintf(key, sizeof key, "fail.%s", call);
    if (read_text(key, value, sizeof value)) return atoi(value);
    return card && read_card_text(card, key, value, sizeof value) ? atoi(value) : SUCCESS;
}

static int read_number(Card *card, const char *call, const char *name, unsigned long long *number) {
    char value[64];
    int failure = fails(card, call);
    if (failure) return failure;
    if (!read_card_text(card, name, value, sizeof value)) return NOT_SUPPORTED;
    *number = strtoull(value, NULL, 0);
    return SUCCESS;
}

static int read_small(Card *card, const char *call, const char *name, unsigned *target) {
    unsigned long long number = 0;
    int result = read_number(card, call, name, &number);
    if (!result) *target = (unsigned)number;
    return result;
}

static int read_name(Card *card, const char *call, const char *name, char *target, unsigned size) {
    int failure = fails(card, call);
    return failure ? failure : read_card_text(card, name, target, size) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlInitWithFlags(unsigned flags) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    (void)flags;
    if (!file) return DRIVER_NOT_LOADED;
    fclose(file);
    return fails(NULL, __func__);
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) { return code ? "an error of the stand-in" : "success"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    char value[64];
    *count = read_text("count", value, sizeof value) ? (unsigned)atoi(value) : 0;
    return fails(NULL, __func__);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Card **card) {
    if (index >= CARDS_MAX) return INVALID_ARGUMENT;
    cards[index].index = (int)index;
    *card = &cards[index];
    return fails(*card, __func__);
}

int nvmlDeviceGetName(Card *card, char *text, unsigned size) { return read_name(card, __func__, "name", text, size); }
int nvmlDeviceGetUUID(Card *card, char *text, unsigned size) { return read_name(card, __func__, "uuid", text, size); }
int nvmlDeviceGetMinorNumber(Card *card, unsigned *minor) { return read_small(card, __func__, "minor", minor); }

int nvmlDeviceGetMemoryInfo(Card *card, unsigned long long *memory) { /* total, free, used */
    unsigned long long used = 0;
    int result = read_number(card, __func__, "memory", &memory[0]);
    read_number(card, __func__, "used", &used);
    memory[2] = used;
    memory[1] = memory[0] - used;
    return result;
}

int nvmlDeviceGetUtilizationRates(Card *card, unsigned *rates) {
    rates[1] = 0;
    return read_small(card, __func__, "utilisation", &rates[0]);
}

int nvmlDeviceGetTotalEnergyConsumption(Card *card, unsigned long long *energy) {
    return read_number(card, __func__, "energy", energy);
}

int nvmlDeviceGetTemperature(Card *card, int sensor, unsigned *temperature) {
    (void)sensor;
    return read_small(card, __func__, "temperature", temperature);
}

int nvmlDeviceGetTotalEccErrors(Card *card, int kind, int counter, unsigned long long *errors) {
    (void)counter;
    return read_number(card, __func__, kind ? "uncorrected" : "corrected", errors);
}

int nvmlDeviceGetRemappedRows(Card *card, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed) {
    *corrected = *pending = *failed = 0;
    int result = read_small(card, __func__, "remapped", uncorrected);
    read_small(card, __func__, "pending", pending);
    read_small(card, __func__, "failed", failed);
    return result;
}

int nvmlDeviceGetRetiredPagesPendingStatus(Card *card, unsigned *pending) {
    return read_small(card, __func__, "retiring", pending);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Card *card, unsigned long long *reasons) {
    return read_number(card, __func__, "throttle", reasons);
}

int nvmlDeviceGetMigMode(Card *card, unsigned *current, unsigned *pending) {
    *pending = 0;
    return read_small(card, __func__, "mig", current);
}

typedef struct {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance, compute_instance;
} Process;

int nvmlDeviceGetComputeRunningProcesses_v3(Card *card, unsigned *count, Process *processes) {
    char value[256] = "";
    unsigned room = *count;
    int failure = fails(card, __func__);
    if (failure) return failure;
    *count = 0;
    read_card_text(card, "pids", value, sizeof value);
    for (char *part = strtok(value, ","); part; part = strtok(NULL, ",")) {
        if (processes && *count < room) processes[*count] = (Process){(unsigned)atoi(part), 0, ~0u, ~0u};
        ++*count;
    }
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

typedef struct {
    Card *card;
    unsigned long long type, number;
    unsigned gpu_instance, compute_instance;
} Event;

int nvmlEventSetCreate(void **set) {
    *set = cards;
    return fails(NULL, __func__);
}

int nvmlEventSetFree(void *set) {
    (void)set;
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(Card *card, unsigned long long types, void *set) {
    (void)types, (void)set;
    return fails(card, __func__);
}

int nvmlEventSetWait_v2(void *set, Event *event, unsigned milliseconds) { /* each change of `xid` is one event */
    char value[64], count[64];
    (void)set, (void)milliseconds;
    int known = read_text("count", count, sizeof count) ? atoi(count) : 0;
    for (int index = 0; index < known && index < CARDS_MAX; ++index) {
        cards[index].index = index;
        if (!read_card_text(&cards[index], "xid", value, sizeof value)) {
            reported[index][0] = 0;
        } else if (strcmp(value, reported[index])) {
            snprintf(reported[index], sizeof reported[index], "%s", value);
            *event = (Event){&cards[index], 8, strtoull(value, NULL, 0), ~0u, ~0u};
            return SUCCESS;
        }
    }
    return TIMEOUT;
}
