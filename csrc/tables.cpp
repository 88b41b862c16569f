#include "tables.h"

#include <stdexcept>

namespace alphafuse {

Tables make_tables(const Table& semantic, const Table& id, int64_t rows, int64_t first_id, bool add,
                   bool cosine) {
  Tables tables{semantic, id, rows, first_id, 0, 0, false, cosine};
  const bool both = semantic.data != nullptr && id.data != nullptr;
  if (semantic.data == nullptr) tables.semantic.cols = 0;
  if (id.data == nullptr) tables.id.cols = 0;
  tables.add = both && add;
  tables.dim = tables.add || id.data == nullptr ? tables.semantic.cols
                                                : tables.semantic.cols + tables.id.cols;
  tables.null_offset = tables.dim - tables.id.cols;
  if (rows < 1 || tables.dim < 1 || tables.null_offset < 0) {
    throw std::invalid_argument("tables: the shapes of semantic_rows and id_embeddings do not fit");
  }
  return tables;
}

}  // namespace alphafuse
