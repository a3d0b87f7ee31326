/* Pictures as a camera sends them: every PFNC format that Lineward claims, encoded sample by sample. */
#ifndef SIM_PIXELS_H
#define SIM_PIXELS_H

#include <stddef.h>
#include <stdint.h>

enum packing { PACK_BYTES, PACK_WORDS, PACK_LSB, PACK_GIGE };

struct pixel_format {
    uint32_t code;
    unsigned samples; /* of one pixel */
    unsigned bits;    /* of one sample */
    enum packing packing;
};

/* NULL when the code is not known. */
const struct pixel_format *pixel_format_find(uint64_t code);

/* Bytes of an image. Lines follow each other within a byte, unless there is padding: then each begins at one. */
size_t pixel_image_bytes(const struct pixel_format *format, size_t width, size_t height, size_t padding);

/* Write the gradient: sample c of pixel (x, y) is (7 x + 13 y + 29 c) modulo 2 to its bits; padding is 0xAA. */
void pixel_gradient(const struct pixel_format *format, size_t width, size_t height, size_t padding, uint8_t *out);

/* Fill memory with a frame's number, 32 bits little-endian, over and over. */
void pixel_stamp(uint32_t number, uint8_t *out, size_t bytes);

#endif
