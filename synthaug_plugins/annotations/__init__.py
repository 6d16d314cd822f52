"""Labelled data sets with masks, VOC and COCO: what each image shows, and where; their import into folders of class folders."""
