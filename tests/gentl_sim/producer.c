/* The producer, its one interface and the list of its devices. */
#include <stdio.h>
#include <string.h>

#include "device.h"

static const char PRODUCER_ID[] = "gentl_sim.cti", INTERFACE_ID[] = "Interface0";
static bool initialised;
static struct module system_module = {KIND_SYSTEM, false, 0}, interface_module = {KIND_INTERFACE, false, 0};

/* -- answers ------------------------------------------------------------------------------------------------------- */

static _Thread_local GC_ERROR last_code;
static _Thread_local const char *last_text = "";

GC_ERROR fail(GC_ERROR code, const char *why)
{
    last_code = code;
    last_text = why;
    return code;
}

/* Every information is asked for twice: for its size, without memory, and then for its value. */
GC_ERROR give(INFO_DATATYPE kind, const void *value, size_t size, INFO_DATATYPE *type, void *out, size_t *out_size)
{
    if (type != NULL)
        *type = kind;
    if (out != NULL && *out_size < size)
        return fail(GC_ERR_BUFFER_TOO_SMALL, "the answer is longer");
    if (out != NULL)
        memcpy(out, value, size);
    *out_size = size;
    return GC_ERR_SUCCESS;
}

GC_ERROR give_text(const char *text, INFO_DATATYPE *type, void *out, size_t *size)
{
    return give(TYPE_STRING, text, strlen(text) + 1, type, out, size);
}

GC_ERROR give_number(INFO_DATATYPE kind, uint64_t value, INFO_DATATYPE *type, void *out, size_t *size)
{
    /* Little-endian machines only, as are all that harvesters has wheels for: the low bytes come first. */
    const size_t bytes = kind == TYPE_BOOL8 ? 1 : kind == TYPE_INT32 || kind == TYPE_UINT32 ? 4 : 8;
    return give(kind, &value, bytes, type, out, size);
}

struct module *module_of(void *handle, enum kind kind)
{
    struct module *module = handle;
    return module != NULL && module->kind == kind && module->open ? module : NULL;
}

/* -- library and system -------------------------------------------------------------------------------------------- */

GC_API GCInitLib(void)
{
    if (initialised)
        return fail(GC_ERR_RESOURCE_IN_USE, "the library is initialised");
    if (!control_open())
        return fail(GC_ERR_ERROR, "the control file cannot be used: it is missing or of another version");
    for (unsigned i = 0; i < CONTROL_MAX_DEVICES; i++)
        device_setup(i);
    initialised = true;
    return GC_ERR_SUCCESS;
}

static void close_interface(void)
{
    for (unsigned i = 0; i < CONTROL_MAX_DEVICES; i++)
        device_close(&devices[i]);
    interface_module.open = false;
}

GC_API GCCloseLib(void)
{
    if (!initialised)
        return fail(GC_ERR_NOT_INITIALIZED, "the library is not initialised");
    close_interface();
    system_module.open = initialised = false;
    control_close();
    return GC_ERR_SUCCESS;
}

GC_API GCGetLastError(GC_ERROR *code, char *text, size_t *size)
{
    *code = last_code;
    return give(TYPE_STRING, last_text, strlen(last_text) + 1, NULL, text, size);
}

GC_API GCGetInfo(int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    switch (command) {
    case TL_INFO_ID:
    case TL_INFO_NAME:
    case TL_INFO_PATHNAME:
        return give_text(PRODUCER_ID, type, out, size);
    case TL_INFO_VENDOR:
        return give_text(device_text(0, TEXT_VENDOR), type, out, size);
    case TL_INFO_MODEL:
    case TL_INFO_DISPLAYNAME:
        return give_text("Simulated GenTL producer", type, out, size);
    case TL_INFO_VERSION:
        return give_text(device_text(0, TEXT_VERSION), type, out, size);
    case TL_INFO_TLTYPE:
        return give_text("Mixed", type, out, size);
    case TL_INFO_CHAR_ENCODING:
        return give_number(TYPE_INT32, 0, type, out, size);
    case TL_INFO_GENTL_VER_MAJOR:
        return give_number(TYPE_UINT32, 1, type, out, size);
    case TL_INFO_GENTL_VER_MINOR:
        return give_number(TYPE_UINT32, 6, type, out, size);
    default:
        return fail(GC_ERR_NOT_IMPLEMENTED, "no such producer information");
    }
}

GC_API TLGetInfo(void *system, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    if (module_of(system, KIND_SYSTEM) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "the system is not open");
    return GCGetInfo(command, type, out, size);
}

GC_API TLOpen(void **system)
{
    if (!initialised)
        return fail(GC_ERR_NOT_INITIALIZED, "the library is not initialised");
    if (system_module.open)
        return fail(GC_ERR_RESOURCE_IN_USE, "the system is open");
    system_module.open = true;
    *system = &system_module;
    return GC_ERR_SUCCESS;
}

GC_API TLClose(void *system)
{
    if (module_of(system, KIND_SYSTEM) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "the system is not open");
    close_interface();
    system_module.open = false;
    return GC_ERR_SUCCESS;
}

GC_API TLUpdateInterfaceList(void *system, bool8_t *changed, uint64_t timeout_ms)
{
    (void)timeout_ms;
    if (module_of(system, KIND_SYSTEM) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "the system is not open");
    if (changed != NULL)
        *changed = 0;
    return GC_ERR_SUCCESS;
}

GC_API TLGetNumInterfaces(void *system, uint32_t *count)
{
    if (module_of(system, KIND_SYSTEM) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "the system is not open");
    *count = 1;
    return GC_ERR_SUCCESS;
}

GC_API TLGetInterfaceID(void *system, uint32_t index, char *out, size_t *size)
{
    if (module_of(system, KIND_SYSTEM) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "the system is not open");
    return index == 0 ? give_text(INTERFACE_ID, NULL, out, size) : fail(GC_ERR_INVALID_INDEX, "there is one interface");
}

static GC_ERROR interface_info(int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    switch (command) {
    case INTERFACE_INFO_ID:
        return give_text(INTERFACE_ID, type, out, size);
    case INTERFACE_INFO_DISPLAYNAME:
        return give_text("Simulated interface", type, out, size);
    case INTERFACE_INFO_TLTYPE:
        return give_text("Custom", type, out, size);
    default:
        return fail(GC_ERR_NOT_IMPLEMENTED, "no such interface information");
    }
}

GC_API TLGetInterfaceInfo(void *system, const char *id, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    if (module_of(system, KIND_SYSTEM) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "the system is not open");
    if (strcmp(id, INTERFACE_ID) != 0)
        return fail(GC_ERR_INVALID_ID, "no interface has this id");
    return interface_info(command, type, out, size);
}

GC_API TLOpenInterface(void *system, const char *id, void **interface)
{
    if (module_of(system, KIND_SYSTEM) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, "the system is not open");
    if (strcmp(id, INTERFACE_ID) != 0)
        return fail(GC_ERR_INVALID_ID, "no interface has this id");
    if (interface_module.open)
        return fail(GC_ERR_RESOURCE_IN_USE, "the interface is open");
    interface_module.open = true;
    *interface = &interface_module;
    return GC_ERR_SUCCESS;
}

/* -- interface and devices ----------------------------------------------------------------------------------------- */

static const char NO_INTERFACE[] = "the interface is not open", NO_DEVICE[] = "no open device has this handle";

GC_API IFClose(void *interface)
{
    if (module_of(interface, KIND_INTERFACE) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_INTERFACE);
    close_interface();
    return GC_ERR_SUCCESS;
}

GC_API IFGetInfo(void *interface, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    if (module_of(interface, KIND_INTERFACE) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_INTERFACE);
    return interface_info(command, type, out, size);
}

/* A lost device stays in the list, without access, as long as the consumer does not look anew. */
GC_API IFUpdateDeviceList(void *interface, bool8_t *changed, uint64_t timeout_ms)
{
    (void)timeout_ms;
    if (module_of(interface, KIND_INTERFACE) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_INTERFACE);
    bool differs = false;
    for (unsigned i = 0; i < CONTROL_MAX_DEVICES; i++) {
        const bool there = i < control_devices() && control_get(i, FIELD_presence) != ABSENT;
        differs = differs || there != devices[i].listed;
        devices[i].listed = there;
        if (control_get(i, FIELD_slow_address) == SLOW_SEARCH)
            control_dawdle(i, SLOW_SEARCH);
    }
    if (changed != NULL)
        *changed = differs;
    return GC_ERR_SUCCESS;
}

GC_API IFGetNumDevices(void *interface, uint32_t *count)
{
    if (module_of(interface, KIND_INTERFACE) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_INTERFACE);
    *count = 0;
    for (unsigned i = 0; i < CONTROL_MAX_DEVICES; i++)
        *count += devices[i].listed;
    return GC_ERR_SUCCESS;
}

static const char *device_id(unsigned index, char id[32])
{
    snprintf(id, 32, "Sim_%s", device_text(index, TEXT_SERIAL));
    return id;
}

static struct device *find_device(const char *id)
{
    char own[32];
    for (unsigned i = 0; i < CONTROL_MAX_DEVICES; i++)
        if (devices[i].listed && strcmp(device_id(i, own), id) == 0)
            return &devices[i];
    return NULL;
}

GC_API IFGetDeviceID(void *interface, uint32_t index, char *out, size_t *size)
{
    if (module_of(interface, KIND_INTERFACE) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_INTERFACE);
    char id[32];
    for (unsigned i = 0; i < CONTROL_MAX_DEVICES; i++)
        if (devices[i].listed && index-- == 0)
            return give_text(device_id(i, id), NULL, out, size);
    return fail(GC_ERR_INVALID_INDEX, "there are fewer devices");
}

static int32_t access_status(const struct device *d)
{
    const uint64_t presence = control_get(d->module.device, FIELD_presence);
    if (presence == LOST || presence == ABSENT || (d->module.open && device_is_gone(d)))
        return ACCESS_STATUS_NOACCESS;
    if (d->module.open)
        return ACCESS_STATUS_OPEN_READWRITE;
    return presence == IN_USE || control_claimed_elsewhere(d->module.device) ? ACCESS_STATUS_BUSY
                                                                             : ACCESS_STATUS_READWRITE;
}

static GC_ERROR device_info(const struct device *d, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    const unsigned index = d->module.device;
    char id[32];
    switch (command) {
    case DEVICE_INFO_ID:
    case DEVICE_INFO_DISPLAYNAME:
        return give_text(device_id(index, id), type, out, size);
    case DEVICE_INFO_VENDOR:
        return give_text(device_text(index, TEXT_VENDOR), type, out, size);
    case DEVICE_INFO_MODEL:
        return give_text(device_text(index, TEXT_MODEL), type, out, size);
    case DEVICE_INFO_TLTYPE:
        return give_text(device_transport(index), type, out, size);
    case DEVICE_INFO_ACCESS_STATUS:
        return give_number(TYPE_INT32, (uint64_t)access_status(d), type, out, size);
    case DEVICE_INFO_USER_DEFINED_NAME:
        return give_text(device_text(index, TEXT_USER_ID), type, out, size);
    case DEVICE_INFO_SERIAL_NUMBER:
        return give_text(device_text(index, TEXT_SERIAL), type, out, size);
    case DEVICE_INFO_VERSION:
        return give_text(device_text(index, TEXT_VERSION), type, out, size);
    case DEVICE_INFO_TIMESTAMP_FREQUENCY:
        return give_number(TYPE_UINT64, 125000000, type, out, size);
    default:
        return fail(GC_ERR_NOT_IMPLEMENTED, "no such device information");
    }
}

GC_API IFGetDeviceInfo(void *interface, const char *id, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    if (module_of(interface, KIND_INTERFACE) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_INTERFACE);
    const struct device *d = find_device(id);
    return d == NULL ? fail(GC_ERR_INVALID_ID, "no device has this id") : device_info(d, command, type, out, size);
}

GC_API IFOpenDevice(void *interface, const char *id, int32_t access, void **device)
{
    (void)access; /* always exclusive: what a consumer may do less, it may do */
    if (module_of(interface, KIND_INTERFACE) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_INTERFACE);
    struct device *d = find_device(id);
    if (d == NULL)
        return fail(GC_ERR_INVALID_ID, "no device has this id");
    const GC_ERROR result = device_open(d);
    if (!result)
        *device = &d->module;
    return result;
}

GC_API DevClose(void *device)
{
    const struct module *module = module_of(device, KIND_DEVICE);
    if (module == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_DEVICE);
    device_close(&devices[module->device]);
    return GC_ERR_SUCCESS;
}

GC_API DevGetInfo(void *device, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    const struct module *module = module_of(device, KIND_DEVICE);
    if (module == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_DEVICE);
    return device_info(&devices[module->device], command, type, out, size);
}

GC_API DevGetPort(void *device, void **port)
{
    const struct module *module = module_of(device, KIND_DEVICE);
    if (module == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_DEVICE);
    *port = &devices[module->device].remote;
    return GC_ERR_SUCCESS;
}

GC_API DevGetNumDataStreams(void *device, uint32_t *count)
{
    if (module_of(device, KIND_DEVICE) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_DEVICE);
    *count = 1;
    return GC_ERR_SUCCESS;
}

GC_API DevGetDataStreamID(void *device, uint32_t index, char *out, size_t *size)
{
    if (module_of(device, KIND_DEVICE) == NULL)
        return fail(GC_ERR_INVALID_HANDLE, NO_DEVICE);
    return index == 0 ? give_text("Stream0", NULL, out, size) : fail(GC_ERR_INVALID_INDEX, "there is one stream");
}

/* -- what a consumer looks for when it loads a producer, and never calls here ---------------------------------------- */

#define ABSENT_FUNCTION(name) \
    GC_API name(void) \
    { \
        return fail(GC_ERR_NOT_IMPLEMENTED, #name); \
    }

ABSENT_FUNCTION(EventGetDataInfo)
ABSENT_FUNCTION(IFGetParentTL)
ABSENT_FUNCTION(DevGetParentIF)
ABSENT_FUNCTION(DSGetParentDev)
ABSENT_FUNCTION(DSAllocAndAnnounceBuffer)
ABSENT_FUNCTION(DSAnnounceCompositeBuffer)
ABSENT_FUNCTION(DSGetNumBufferParts)
ABSENT_FUNCTION(DSGetBufferPartInfo)
ABSENT_FUNCTION(DSGetNumFlows)
ABSENT_FUNCTION(DSGetFlowInfo)
ABSENT_FUNCTION(DSGetNumBufferSegments)
ABSENT_FUNCTION(DSGetBufferSegmentInfo)
