"""Methods measured over the zoo: records, and figures from them."""
