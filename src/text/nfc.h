/* Unicode normal form C, through utf8proc. */
#ifndef QEP_TEXT_NFC_H
#define QEP_TEXT_NFC_H

#include "text/bytes.h"

/* Appends the NFC form of valid UTF-8. Time is linear but for a sort within runs of marks. */
enum qep_status qep_nfc_append(struct qep_bytes *out, const char *text, size_t len);

#endif
