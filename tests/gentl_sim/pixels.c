#include "pixels.h"

#include <string.h>

enum { CACHED_BYTES = 16384 };

/* Codes: Pixel Format Naming Convention 2.4. "Packed" is GigE Vision 1.2, "p" is PFNC's own packing. */
#define BAYER_ROW(first, bits, packing) \
    {(first), 1, bits, packing}, {(first) + 1, 1, bits, packing}, {(first) + 2, 1, bits, packing}, \
        {(first) + 3, 1, bits, packing}
#define BAYER_P_ROW(first, bits) \
    {(first), 1, bits, PACK_LSB}, {(first) + 2, 1, bits, PACK_LSB}, {(first) + 4, 1, bits, PACK_LSB}, \
        {(first) + 6, 1, bits, PACK_LSB}

static const struct pixel_format formats[] = {
    {0x01010037, 1, 1, PACK_LSB},    /* Mono1p */
    {0x01080001, 1, 8, PACK_BYTES},  /* Mono8 */
    {0x01100003, 1, 10, PACK_WORDS}, /* Mono10 */
    {0x01100005, 1, 12, PACK_WORDS}, /* Mono12 */
    {0x01100025, 1, 14, PACK_WORDS}, /* Mono14 */
    {0x01100007, 1, 16, PACK_WORDS}, /* Mono16 */
    {0x010A0046, 1, 10, PACK_LSB},   /* Mono10p */
    {0x010C0047, 1, 12, PACK_LSB},   /* Mono12p */
    {0x010E0104, 1, 14, PACK_LSB},   /* Mono14p */
    {0x010C0004, 1, 10, PACK_GIGE},  /* Mono10Packed */
    {0x010C0006, 1, 12, PACK_GIGE},  /* Mono12Packed */
    {0x02180014, 3, 8, PACK_BYTES},  /* RGB8 */
    {0x02180015, 3, 8, PACK_BYTES},  /* BGR8 */
    {0x02200016, 4, 8, PACK_BYTES},  /* RGBa8 */
    {0x02200017, 4, 8, PACK_BYTES},  /* BGRa8 */
    {0x02300018, 3, 10, PACK_WORDS}, /* RGB10 */
    {0x02300019, 3, 10, PACK_WORDS}, /* BGR10 */
    {0x0230001A, 3, 12, PACK_WORDS}, /* RGB12 */
    {0x0230001B, 3, 12, PACK_WORDS}, /* BGR12 */
    {0x02300033, 3, 16, PACK_WORDS}, /* RGB16 */
    {0x0230004B, 3, 16, PACK_WORDS}, /* BGR16 */
    {0x02100032, 2, 8, PACK_BYTES},  /* YUV422_8 */
    {0x0210001F, 2, 8, PACK_BYTES},  /* YUV422_8_UYVY */
    {0x0210003B, 2, 8, PACK_BYTES},  /* YCbCr422_8 */
    {0x02100043, 2, 8, PACK_BYTES},  /* YCbCr422_8_CbYCrY */
    BAYER_ROW(0x01080008, 8, PACK_BYTES),
    BAYER_ROW(0x0110000C, 10, PACK_WORDS),
    BAYER_ROW(0x01100010, 12, PACK_WORDS),
    BAYER_ROW(0x01100109, 14, PACK_WORDS),
    BAYER_ROW(0x0110002E, 16, PACK_WORDS),
    BAYER_ROW(0x010C0026, 10, PACK_GIGE),
    BAYER_ROW(0x010C002A, 12, PACK_GIGE),
    BAYER_ROW(0x010E0105, 14, PACK_LSB),
    BAYER_P_ROW(0x010A0052, 10),
    BAYER_P_ROW(0x010C0053, 12),
    {0x0210003E, 2, 8, PACK_BYTES}, /* YCbCr601_422_8, which Lineward does not claim */
};

const struct pixel_format *pixel_format_find(uint64_t code)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (formats[i].code == code)
            return &formats[i];
    return NULL;
}

static size_t bits_per_pixel(const struct pixel_format *format)
{
    return format->code >> 16 & 0xFF;
}

size_t pixel_image_bytes(const struct pixel_format *format, size_t width, size_t height, size_t padding)
{
    const size_t bits = width * bits_per_pixel(format);
    return padding ? ((bits + 7) / 8 + padding) * height : (bits * height + 7) / 8;
}

/* Put sample number n of a run into memory that was zero before. */
static void put_sample(const struct pixel_format *format, uint8_t *out, size_t n, uint32_t sample)
{
    switch (format->packing) {
    case PACK_BYTES:
        out[n] = (uint8_t)sample;
        break;
    case PACK_WORDS:
        out[2 * n] = (uint8_t)sample;
        out[2 * n + 1] = (uint8_t)(sample >> 8);
        break;
    case PACK_LSB:
        for (size_t bit = 0; bit < format->bits; bit++) {
            const size_t place = n * format->bits + bit;
            out[place / 8] |= (uint8_t)((sample >> bit & 1) << place % 8);
        }
        break;
    case PACK_GIGE: {
        /* Two samples in three bytes: high bits of the first, low bits of both, high bits of the second. */
        uint8_t *group = out + n / 2 * 3;
        const unsigned low = format->bits - 8, odd = n % 2;
        group[odd ? 2 : 0] = (uint8_t)(sample >> low);
        group[1] |= (uint8_t)((sample & ((1u << low) - 1)) << (odd ? 4 : 0));
        break;
    }
    }
}

void pixel_gradient(const struct pixel_format *format, size_t width, size_t height, size_t padding, uint8_t *out)
{
    const size_t pitch = pixel_image_bytes(format, width, 1, 0) + padding;
    const uint32_t mask = (1u << format->bits) - 1;
    memset(out, 0, pixel_image_bytes(format, width, height, padding));
    size_t n = 0;
    for (size_t y = 0; y < height; y++) {
        uint8_t *line = padding ? out + y * pitch : out;
        if (padding) {
            n = 0;
            memset(line + pitch - padding, 0xAA, padding);
        }
        for (size_t x = 0; x < width; x++)
            for (size_t c = 0; c < format->samples; c++)
                put_sample(format, line, n++, (uint32_t)(7 * x + 13 * y + 29 * c) & mask);
    }
}

void pixel_stamp(uint32_t number, uint8_t *out, size_t bytes)
{
    const uint8_t pattern[4] = {(uint8_t)number, (uint8_t)(number >> 8), (uint8_t)(number >> 16), (uint8_t)(number >> 24)};
    size_t done = bytes < sizeof pattern ? bytes : sizeof pattern;
    memcpy(out, pattern, done);
    while (done < bytes) { /* doubles up to what stays in the first cache: five megapixels then take half a millisecond */
        size_t more = done < CACHED_BYTES ? done : CACHED_BYTES;
        more = more < bytes - done ? more : bytes - done;
        memcpy(out + done, out, more);
        done += more;
    }
}
