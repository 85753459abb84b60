/* A stand-in for NVIDIA's management library: it answers for cards that are not there, as environment variables say, and
   fails in the ways in which drivers fail. It is compiled by the tests; the layout of its structures is that of nvml.h.

     STAND_IN_GPUS    number of cards (default 1)
     STAND_IN_CRASH   name of a function that reads through a null pointer
     STAND_IN_HANG    name of a function that never returns
     STAND_IN_FAIL    NAME=CODE: a function that returns this error
     STAND_IN_PRINT   name of a function that prints to stdout, without ending its line
     STAND_IN_XID     number of a fault that card 0 reports once
     STAND_IN_LOST    number of a card that fell off the bus
     STAND_IN_MIG     number of instances into which every card is divided

   Compiled with -DOLD_DRIVER it lacks what drivers before 510 lack. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int ret;
typedef struct card { unsigned index; int is_instance; } *device;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_info;
typedef struct { device device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } event_data;

enum { OK = 0, INVALID = 2, NOT_FOUND = 6, TIMEOUT = 10, LOST = 15 };

static struct card cards[16], instances[16];

static int named(const char *variable, const char *function) {
    const char *name = getenv(variable);
    return name && strcmp(name, function) == 0;
}

static ret enter(const char *function) {
    if (named("STAND_IN_CRASH", function)) {
        signal(SIGSEGV, SIG_DFL);
        volatile int *nowhere = 0;
        return *nowhere;
    }
    if (named("STAND_IN_HANG", function))
        for (;;) pause();
    if (named("STAND_IN_PRINT", function)) {
        printf("a driver's own words");
        fflush(stdout);
    }
    const char *fail = getenv("STAND_IN_FAIL");
    size_t length = strlen(function);
    if (fail && strncmp(fail, function, length) == 0 && fail[length] == '=') return atoi(fail + length + 1);
    return OK;
}

/* Every function begins with this: it says its name, and returns where it was told to fail. */
#define ENTER do { ret failed = enter(__func__); if (failed) return failed; } while (0)

static unsigned count(void) {
    const char *gpus = getenv("STAND_IN_GPUS");
    return gpus ? (unsigned)atoi(gpus) : 1;
}

ret nvmlInit_v2(void) { ENTER; return OK; }
ret nvmlShutdown(void) { ENTER; return OK; }
ret nvmlSystemGetDriverVersion(char *text, unsigned size) { ENTER; snprintf(text, size, "580.65.06"); return OK; }
ret nvmlSystemGetNVMLVersion(char *text, unsigned size) { ENTER; snprintf(text, size, "13.580.65.06"); return OK; }
ret nvmlSystemGetCudaDriverVersion_v2(int *version) { ENTER; *version = 13000; return OK; }
ret nvmlSystemGetCudaDriverVersion(int *version) { ENTER; *version = 13000; return OK; }
ret nvmlDeviceGetCount_v2(unsigned *n) { ENTER; *n = count(); return OK; }

ret nvmlDeviceGetHandleByIndex_v2(unsigned index, device *card) {
    ENTER;
    if (index >= count() || index >= 16) return INVALID;
    const char *lost = getenv("STAND_IN_LOST");
    if (lost && (unsigned)atoi(lost) == index) return LOST;
    cards[index].index = index;
    *card = &cards[index];
    return OK;
}

ret nvmlDeviceGetIndex(device card, unsigned *index) { ENTER; *index = card->index; return OK; }
ret nvmlDeviceGetName(device card, char *text, unsigned size) {
    ENTER;
    snprintf(text, size, card->is_instance ? "Stand-In MIG %u" : "Stand-In %u", card->index);
    return OK;
}
ret nvmlDeviceGetUUID(device card, char *text, unsigned size) {
    ENTER;
    snprintf(text, size, "%s-00000000-0000-0000-0000-00000000000%u", card->is_instance ? "MIG" : "GPU", card->index);
    return OK;
}
ret nvmlDeviceGetPciInfo_v3(device card, pci_info *pci) {
    ENTER;
    memset(pci, 0, sizeof *pci);
    pci->bus = card->index + 1;
    snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "0000:%02X:00.0", card->index + 1);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", card->index + 1);
    return OK;
}
ret nvmlDeviceGetCudaComputeCapability(device card, int *major, int *minor) { ENTER; *major = 8; *minor = 9; return OK; }
ret nvmlDeviceGetEccMode(device card, unsigned *now, unsigned *pending) { ENTER; *now = 1; *pending = 1; return OK; }
ret nvmlDeviceGetMaxPcieLinkGeneration(device card, unsigned *n) { ENTER; *n = 4; return OK; }
ret nvmlDeviceGetMaxPcieLinkWidth(device card, unsigned *n) { ENTER; *n = 16; return OK; }
ret nvmlDeviceGetCurrPcieLinkGeneration(device card, unsigned *n) { ENTER; *n = 1; return OK; }
ret nvmlDeviceGetCurrPcieLinkWidth(device card, unsigned *n) { ENTER; *n = 8; return OK; }
ret nvmlDeviceGetEnforcedPowerLimit(device card, unsigned *milliwatts) { ENTER; *milliwatts = 450000; return OK; }
ret nvmlDeviceGetPowerManagementDefaultLimit(device card, unsigned *milliwatts) { ENTER; *milliwatts = 450000; return OK; }
static unsigned instance_count(void) {
    const char *mig = getenv("STAND_IN_MIG");
    return mig ? (unsigned)atoi(mig) : 0;
}
ret nvmlDeviceGetMigMode(device card, unsigned *now, unsigned *pending) {
    ENTER;
    *now = *pending = getenv("STAND_IN_MIG") != 0;
    return OK;
}
ret nvmlDeviceGetMaxMigDeviceCount(device card, unsigned *n) { ENTER; *n = 7; return OK; }
ret nvmlDeviceGetMigDeviceHandleByIndex(device card, unsigned index, device *instance) {
    ENTER;
    if (index >= instance_count()) return NOT_FOUND;
    instances[index].index = index;
    instances[index].is_instance = 1;
    *instance = &instances[index];
    return OK;
}
ret nvmlDeviceGetMaxClockInfo(device card, int kind, unsigned *megahertz) { ENTER; *megahertz = 2520; return OK; }
ret nvmlDeviceGetClockInfo(device card, int kind, unsigned *megahertz) { ENTER; *megahertz = 210; return OK; }
ret nvmlDeviceGetTemperatureThreshold(device card, int kind, unsigned *celsius) { ENTER; *celsius = 90; return OK; }
ret nvmlDeviceGetTemperature(device card, int sensor, unsigned *celsius) { ENTER; *celsius = 41; return OK; }
ret nvmlDeviceGetPowerUsage(device card, unsigned *milliwatts) { ENTER; *milliwatts = 27500; return OK; }
ret nvmlDeviceGetUtilizationRates(device card, utilization *shares) {
    ENTER;
    shares->gpu = 12;
    shares->memory = 3;
    return OK;
}
ret nvmlDeviceGetCurrentClocksThrottleReasons(device card, unsigned long long *reasons) {
    ENTER;
    *reasons = 0x1 | 0x4 | 0x20; /* idle, power cap, temperature */
    return OK;
}
ret nvmlDeviceGetTotalEccErrors(device card, int kind, int counter, unsigned long long *errors) {
    ENTER;
    *errors = kind == 0 ? 5 : 0;
    return OK;
}

#ifndef OLD_DRIVER
ret nvmlDeviceGetMemoryInfo_v2(device card, memory_v2 *memory) {
    ENTER;
    if (memory->version != (sizeof *memory | 2 << 24)) return 25; /* argument version mismatch */
    memory->total = (card->is_instance ? 10ull : 24ull) << 30;
    memory->reserved = 1ull << 30;
    memory->used = 3ull << 30;
    memory->free = 20ull << 30;
    return OK;
}
#endif

ret nvmlEventSetCreate(void **set) { static int any; ENTER; *set = &any; return OK; }
ret nvmlEventSetFree(void *set) { ENTER; return OK; }
ret nvmlDeviceRegisterEvents(device card, unsigned long long types, void *set) { ENTER; return OK; }
ret nvmlEventSetWait_v2(void *set, event_data *event, unsigned timeout_ms) {
    static int told;
    ENTER;
    const char *xid = getenv("STAND_IN_XID");
    if (!xid || told) return TIMEOUT;
    told = 1;
    memset(event, 0, sizeof *event);
    event->device = &cards[0];
    event->type = 8; /* critical Xid error */
    event->data = strtoull(xid, 0, 10);
    return OK;
}
