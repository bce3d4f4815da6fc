#include <libxml/xmlversion.h>
/* The converters of the system's ICU, which nothing here uses, are declared otherwise than those of Foundation's. */
#undef LIBXML_ICU_ENABLED
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <libxml/xpath.h>

/* xmlFree is a variable, which Swift 6 does not let anybody read without isolation. */
static inline void clibxml2_free(void *pointer) { xmlFree(pointer); }
