"""What leaves the house: a store in the layouts that other libraries read, its data card, and the way to a hub."""
