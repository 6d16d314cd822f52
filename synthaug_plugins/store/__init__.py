"""The store: plan, blocks, shards, index. The only place where generation and training meet."""
