"""The module Sample Data: recordings that can be downloaded, as other modules register them. Nothing is downloaded."""

import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModule


class SampleData(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "Sample Data"
        parent.categories = ["Informatics"]
        if not hasattr(slicer.modules, "sampleDataSources"):
            slicer.modules.sampleDataSources = {}


class SampleDataSource:
    """One or several files: lists of the same length, or one text each."""

    def __init__(self, sampleName=None, uris=None, fileNames=None, nodeNames=None, checksums=None, loadFiles=None,
                 customDownloader=None, thumbnailFileName=None, loadFileTypes=None,
                 loadFileProperties=None):  # fmt: skip
        several = isinstance(uris, list | tuple)
        lists = {}
        for name, value in (
            ("uris", uris), ("fileNames", fileNames), ("nodeNames", nodeNames), ("checksums", checksums),
            ("loadFiles", loadFiles), ("loadFileTypes", loadFileTypes),
        ):  # fmt: skip
            single = not several or value is None or (name == "loadFileTypes" and isinstance(value, str))
            lists[name] = [value] * (len(uris) if several else 1) if single else value
        if len({len(value) for value in lists.values()}) > 1:
            raise ValueError(f"All fields of sample data source must have the same length: {lists}")
        self.__dict__.update(lists)
        self.sampleName, self.thumbnailFileName = sampleName, thumbnailFileName
        self.customDownloader, self.loadFileProperties = customDownloader, loadFileProperties or {}


class SampleDataLogic:
    @staticmethod
    def registerCustomSampleDataSource(category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None,
                                       customDownloader=None, thumbnailFileName=None, loadFileTypes=None,
                                       loadFiles=None, loadFileProperties=None, checksums=None):  # fmt: skip
        """Add a recording to a category, unless it is there already."""
        source = SampleDataSource(
            sampleName, uris, fileNames, nodeNames, checksums, loadFiles, customDownloader, thumbnailFileName,
            loadFileTypes, loadFileProperties,
        )  # fmt: skip
        known = slicer.modules.sampleDataSources.setdefault(category, [])
        if vars(source) not in [vars(one) for one in known]:
            known.append(source)

    @staticmethod
    def sampleDataSourcesByCategory(category=None):
        """Return the recordings of a category; without a category, all of them by category."""
        sources = slicer.modules.sampleDataSources
        return sources if category is None else sources.get(category, [])
