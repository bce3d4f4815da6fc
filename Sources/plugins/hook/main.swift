import PluginKit

PluginMain.run(HookPlugin())
