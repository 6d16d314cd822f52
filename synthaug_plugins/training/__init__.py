"""The MMPretrain side: real and synthetic images meet in a batch. Knows stores, not generators. Importing this is free."""
