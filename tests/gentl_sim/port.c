/* Ports: each module's description in XML, and the registers that it describes. */
#include <stdio.h>
#include <string.h>

#include "device.h"

/* The text of a file between two symbols, ended by a NUL, where GenApi stops reading. */
#define EMBED(symbol, file) \
    __asm__(".section .rodata\n" #symbol ": .incbin \"" file "\"\n" #symbol "_end: .byte 0\n.previous\n"); \
    extern const char symbol[] __attribute__((visibility("hidden"))), \
        symbol##_end[] __attribute__((visibility("hidden")))

EMBED(device_xml, "device.xml");
EMBED(stream_xml, "stream.xml");
EMBED(module_xml, "module.xml");

struct port {
    struct module *module;
    const char *name, *type, *file, *xml;
    size_t xml_bytes;
};

static bool find_port(void *handle, struct port *port)
{
    struct module *module = handle;
    if (module == NULL || !module->open)
        return false;
    switch (module->kind) {
    case KIND_SYSTEM:
    case KIND_INTERFACE:
    case KIND_DEVICE: {
        static const char *const types[] = {"TLSystem", "TLInterface", "TLDevice"};
        *port = (struct port){module, "ModulePort", types[module->kind - KIND_SYSTEM], "module.xml", module_xml,
                              (size_t)(module_xml_end - module_xml)};
        return true;
    }
    case KIND_REMOTE:
        *port = (struct port){module, "Device", "Device", "device.xml", device_xml, (size_t)(device_xml_end - device_xml)};
        return true;
    case KIND_STREAM:
        *port = (struct port){module, "StreamPort", "TLDataStream", "stream.xml", stream_xml,
                              (size_t)(stream_xml_end - stream_xml)};
        return true;
    default:
        return false;
    }
}

static const char NO_PORT[] = "no open port has this handle";

GC_API GCGetNumPortURLs(void *handle, uint32_t *count)
{
    struct port port;
    if (!find_port(handle, &port))
        return fail(GC_ERR_INVALID_HANDLE, NO_PORT);
    *count = 1;
    return GC_ERR_SUCCESS;
}

static GC_ERROR give_url(const struct port *port, INFO_DATATYPE *type, void *out, size_t *size)
{
    char url[64];
    snprintf(url, sizeof url, "local:sim_%s;%X;%zX", port->file, (unsigned)XML_BASE, port->xml_bytes);
    return give_text(url, type, out, size);
}

GC_API GCGetPortURL(void *handle, char *out, size_t *size)
{
    struct port port;
    if (!find_port(handle, &port))
        return fail(GC_ERR_INVALID_HANDLE, NO_PORT);
    return give_url(&port, NULL, out, size);
}

GC_API GCGetPortURLInfo(void *handle, uint32_t index, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    struct port port;
    if (!find_port(handle, &port))
        return fail(GC_ERR_INVALID_HANDLE, NO_PORT);
    if (index != 0)
        return fail(GC_ERR_INVALID_INDEX, "there is one URL");
    switch (command) {
    case URL_INFO_URL:
        return give_url(&port, type, out, size);
    case URL_INFO_SCHEMA_VER_MAJOR:
    case URL_INFO_SCHEMA_VER_MINOR:
    case URL_INFO_FILE_VER_MAJOR:
        return give_number(TYPE_INT32, 1, type, out, size);
    case URL_INFO_FILE_VER_MINOR:
    case URL_INFO_FILE_VER_SUBMINOR:
        return give_number(TYPE_INT32, 0, type, out, size);
    default:
        return fail(GC_ERR_NOT_IMPLEMENTED, "no such URL information");
    }
}

GC_API GCGetPortInfo(void *handle, int32_t command, INFO_DATATYPE *type, void *out, size_t *size)
{
    struct port port;
    if (!find_port(handle, &port))
        return fail(GC_ERR_INVALID_HANDLE, NO_PORT);
    const unsigned index = port.module->device;
    switch (command) {
    case PORT_INFO_ID:
    case PORT_INFO_MODULE:
        return give_text(port.type, type, out, size);
    case PORT_INFO_VENDOR:
        return give_text(device_text(index, TEXT_VENDOR), type, out, size);
    case PORT_INFO_MODEL:
        return give_text(device_text(index, TEXT_MODEL), type, out, size);
    case PORT_INFO_TLTYPE:
        return give_text(device_transport(index), type, out, size);
    case PORT_INFO_VERSION:
        return give_text(device_text(index, TEXT_VERSION), type, out, size);
    case PORT_INFO_PORTNAME:
        return give_text(port.name, type, out, size);
    case PORT_INFO_LITTLE_ENDIAN:
    case PORT_INFO_ACCESS_READ:
    case PORT_INFO_ACCESS_WRITE:
        return give_number(TYPE_BOOL8, 1, type, out, size);
    case PORT_INFO_BIG_ENDIAN:
    case PORT_INFO_ACCESS_NA:
    case PORT_INFO_ACCESS_NI:
        return give_number(TYPE_BOOL8, 0, type, out, size);
    default:
        return fail(GC_ERR_NOT_IMPLEMENTED, "no such port information");
    }
}

static GC_ERROR stream_access(struct device *d, uint64_t address, void *data, size_t size, bool writing)
{
    const uint64_t index = (address - REGISTER_BASE) / 8;
    if (address < REGISTER_BASE || index >= STREAM_REG_COUNT || address % 8 || size != 8)
        return fail(GC_ERR_INVALID_ADDRESS, "there is no register");
    pthread_mutex_lock(&d->mutex);
    memcpy(writing ? (void *)&d->stream_registers[index] : data, writing ? data : (void *)&d->stream_registers[index], 8);
    pthread_mutex_unlock(&d->mutex);
    return GC_ERR_SUCCESS;
}

GC_API GCReadPort(void *handle, uint64_t address, void *out, size_t *size)
{
    struct port port;
    if (!find_port(handle, &port))
        return fail(GC_ERR_INVALID_HANDLE, NO_PORT);
    if (address >= XML_BASE && address - XML_BASE + *size <= port.xml_bytes) {
        memcpy(out, port.xml + (address - XML_BASE), *size);
        return GC_ERR_SUCCESS;
    }
    struct device *d = &devices[port.module->device];
    switch (port.module->kind) {
    case KIND_REMOTE:
        return device_read(d, address, out, *size);
    case KIND_STREAM:
        return stream_access(d, address, out, *size, false);
    default:
        return fail(GC_ERR_INVALID_ADDRESS, "the module has no registers");
    }
}

GC_API GCWritePort(void *handle, uint64_t address, const void *in, size_t *size)
{
    struct port port;
    if (!find_port(handle, &port))
        return fail(GC_ERR_INVALID_HANDLE, NO_PORT);
    struct device *d = &devices[port.module->device];
    switch (port.module->kind) {
    case KIND_REMOTE:
        return device_write(d, address, in, *size);
    case KIND_STREAM:
        return stream_access(d, address, (void *)in, *size, true);
    default:
        return fail(GC_ERR_INVALID_ADDRESS, "the module has no registers");
    }
}

GC_API GCReadPortStacked(void *handle, struct stacked_register *entries, size_t *count)
{
    for (size_t i = 0; i < *count; i++) {
        const GC_ERROR result = GCReadPort(handle, entries[i].address, entries[i].data, &entries[i].size);
        if (result) {
            *count = i;
            return result;
        }
    }
    return GC_ERR_SUCCESS;
}

GC_API GCWritePortStacked(void *handle, struct stacked_register *entries, size_t *count)
{
    for (size_t i = 0; i < *count; i++) {
        const GC_ERROR result = GCWritePort(handle, entries[i].address, entries[i].data, &entries[i].size);
        if (result) {
            *count = i;
            return result;
        }
    }
    return GC_ERR_SUCCESS;
}
