import PluginKit

PluginMain.run(FilesystemPlugin())
