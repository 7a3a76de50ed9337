"""What Python's fork server imports first, before the libraries (`scrna.cluster`).

What imports make stays, so looking for garbage among it, an eighth of their time, is for nothing.
A worker looks for it again (`scrna.imports.freeze`). The folder is this file's own: with a rule's
scripts on the path ``import umap`` would find one of them.
"""

import gc

gc.disable()
