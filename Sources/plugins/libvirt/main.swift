import PluginKit

PluginMain.run(LibvirtPlugin())
