# The built-in recipes are the files of configs/, compiled in: one source of truth, no path at run
# time. Bytes rather than string literals, whose length ISO C limits.
set(QEP_RECIPES bf16 q8 q4 q4-all)
set(recipe_data "")
set(recipe_table "")
foreach(recipe ${QEP_RECIPES})
  set(file ${CMAKE_SOURCE_DIR}/configs/${recipe}.json)
  set_property(DIRECTORY ${CMAKE_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  string(REPLACE "-" "_" symbol ${recipe})
  file(READ ${file} hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(APPEND recipe_data "static const char recipe_${symbol}[] = {${bytes}0};\n")
  string(APPEND recipe_table "    {\"${recipe}\", recipe_${symbol}, sizeof recipe_${symbol} - 1},\n")
endforeach()
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/quant/recipes_builtin.h CONTENT
"/* Generated from configs/ by recipes.cmake. */
#include <stddef.h>
@recipe_data@
static const struct {
    const char *name, *text;
    size_t len;
} qep_builtin_recipes[] = {
@recipe_table@};
" @ONLY)
target_include_directories(qep_quant PRIVATE ${CMAKE_BINARY_DIR}/generated)
